// Sorting: a click on a heading sorts by the cells' data-value (or text); a second click reverses.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.querySelectorAll("thead th button").forEach((button) => {
    const heading = button.closest("th");
    button.addEventListener("click", () => {
      const column = heading.cellIndex;
      const down = heading.getAttribute("aria-sort") === "ascending";
      table.querySelectorAll("th[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      const compare = (a, b) => {
        const x = value(a), y = value(b);
        const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
        return down ? -order : order;
      };
      body.append(...[...body.rows].sort(compare));
    });
  });
}

// Filtering: buttons show the rows of one kind.
for (const group of document.querySelectorAll("[data-filters]")) {
  const target = document.getElementById(group.dataset.filters);
  group.hidden = false;
  group.querySelectorAll("button").forEach((button) => {
    button.addEventListener("click", () => {
      group.querySelectorAll("button").forEach((other) => other.setAttribute("aria-pressed", other === button));
      const wanted = button.dataset.show;
      target.querySelectorAll("[data-kind]").forEach((row) => {
        row.hidden = wanted !== "" && row.dataset.kind !== wanted;
      });
      if (wanted === "failed") target.querySelectorAll("details").forEach((d) => (d.open = !!d.querySelector("[data-kind=failed]")));
    });
  });
}
