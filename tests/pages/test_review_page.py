"""The review page in a real browser."""

import signal
from pathlib import Path

import pyarrow.parquet as pq
from browser import Tab, wait_for
from review_server import PAIRS, serving

from stages.memorization.candidates import NAME
from stages.memorization.verdict_log import LOG, read_decisions


def ready(tab: Tab) -> None:
    wait_for(lambda: tab.run("document.getElementById('pair').getAttribute('aria-busy') == 'false'"))


def at(tab: Tab, pair: int) -> None:
    """Wait until the tab shows a pair (counted from 0), pictures and all."""
    wait_for(lambda: tab.text("#count").startswith(f"pair {pair + 1} of {PAIRS} "))
    ready(tab)
    assert f"/{pair}/sample.png" in tab.run("document.querySelector('#sample img').src")


def on_disk(folder: Path) -> dict[int, str]:
    """Standing verdicts of anna by the pair's place."""
    table = pq.read_table(folder / NAME, columns=["sample_id", "train_id"]).to_pylist()
    places = {(row["sample_id"], row["train_id"]): place for place, row in reversed(list(enumerate(table)))}
    return {places[pair]: act.verdict for pair, act in read_decisions(folder / LOG)[0].of("anna").items()}


def test_keys_in_a_real_browser(folder, browser):
    with serving(folder, "--reviewer", "anna") as server:
        tab = browser.open(server.address)
        at(tab, 0)
        tab.press("c", repeat=True)  # a key held down judges nothing
        tab.press("c")
        at(tab, 1)
        tab.press("n")
        at(tab, 2)
        tab.press("ArrowRight")
        at(tab, 3)
        tab.press("u")
        at(tab, 4)
        tab.press("Enter")  # the next open one is the third, past the end
        at(tab, 2)
        wait_for(lambda: on_disk(folder) == {0: "copy", 1: "not", 3: "unsure"})
        tab.press("z")
        at(tab, 3)
        wait_for(lambda: on_disk(folder) == {0: "copy", 1: "not"})
        tab.press("ArrowLeft")
        tab.press("ArrowLeft")
        at(tab, 1)
        tab.click("[data-verdict=copy]")  # a decided pair that is changed stays in view
        wait_for(lambda: on_disk(folder) == {0: "copy", 1: "copy"})
        at(tab, 1)
        assert tab.text("#state") == "copy"
        tab.press("d")
        assert "<b>because</b>" in tab.text("#facts")
        before = tab.run("document.querySelector('#difference img').src")
        tab.press("+")
        wait_for(lambda: tab.run("document.querySelector('#difference img').src") != before)
        tab.press("?")
        assert tab.run("document.getElementById('help').open")
        tab.press("n")  # the overlay keeps the keys
        tab.press("Escape")
        assert not tab.run("document.getElementById('help').open")
        assert on_disk(folder) == {0: "copy", 1: "copy"}


def test_a_second_tab_sees_it_and_a_dead_server_is_waited_for(folder, browser):
    """Two tabs; the server is killed and verdicts go on; a new server on the port gets them all, once."""
    with serving(folder, "--reviewer", "anna") as server:
        one, two = browser.open(server.address), browser.open(server.address)
        at(one, 0)
        one.press("c")
        at(one, 1)
        two.call("Page.bringToFront")
        wait_for(lambda: "1 decided" in two.text("#count"))
        one.call("Page.bringToFront")
        wait_for(lambda: one.run("load(2).done"))  # the pictures ahead are there before the server dies
        server.end(signal.SIGKILL)
        one.press("n")
        at(one, 2)
        one.press("u")
        wait_for(lambda: "2 verdicts wait in this browser" in one.text("#trouble"))
        assert on_disk(folder) == {0: "copy"}
    with serving(folder, "--reviewer", "anna", "--port", str(server.port)):
        wait_for(lambda: on_disk(folder) == {0: "copy", 1: "not", 2: "unsure"})
        wait_for(lambda: one.run("document.getElementById('trouble').hidden"))
        assert len((folder / LOG).read_text().splitlines()) == 3


def test_everything_fits_and_nothing_jumps(folder, browser):
    size = "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
    boxes = "[...document.querySelectorAll('.frame, button')].map(e => JSON.stringify(e.getBoundingClientRect()))"
    with serving(folder, "--reviewer", "anna") as server:
        for width, height in ((1280, 800), (820, 1180), (390, 844)):
            tab = browser.open(server.address, width, height)
            at(tab, 0)
            assert tab.run(size) == [width, height]
            before = tab.run(boxes)
            tab.press("c")
            at(tab, 1)
            wait_for(lambda: on_disk(folder) == {0: "copy"})
            assert tab.run(boxes) == before
            side, zoom = tab.run("[document.querySelector('#train img').clientWidth, devicePixelRatio]")
            assert side * zoom % 8 == 0  # whole multiples of the picture's pixels
            assert tab.run("getComputedStyle(document.querySelector('#train img')).imageRendering") == "pixelated"
            tab.press("z")
            wait_for(lambda: on_disk(folder) == {})
