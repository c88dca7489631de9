
// The gallery: filtered by verdict, sorted by a number, a page at a time.
if (document.getElementById("cards")) {
  const gallery = document.getElementById("cards");
  const cards = [...gallery.querySelectorAll(".card")];
  const more = document.getElementById("more"), none = document.getElementById("none"), sort = document.getElementById("sort");
  const buttons = [...document.querySelectorAll("[data-verdict-filter]")];
  let wanted = "", shown = 60;
  const show = () => {
    const fitting = cards.filter((card) => wanted === "" || card.dataset.verdict === wanted);
    cards.forEach((card) => (card.hidden = true));
    fitting.slice(0, shown).forEach((card) => (card.hidden = false));
    more.hidden = fitting.length <= shown;
    more.textContent = `show all ${fitting.length}`;
    none.hidden = fitting.length > 0;
  };
  buttons.forEach((button) => button.addEventListener("click", () => {
    buttons.forEach((other) => other.setAttribute("aria-pressed", other === button));
    wanted = button.dataset.verdictFilter;
    shown = 60;
    show();
  }));
  sort.addEventListener("change", () => {
    const [key, down] = sort.value.split(" ");
    const value = (card) => Number(card.dataset[key]);
    cards.sort((a, b) => (down ? value(b) - value(a) : value(a) - value(b)));
    gallery.append(...cards);
    show();
  });
  more.addEventListener("click", () => { shown = cards.length; show(); });
  document.querySelector(".bar").hidden = false;
  show();
}
