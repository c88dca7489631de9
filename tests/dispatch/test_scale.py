"""What a driver and simulated nodes do before shards start: every file is read once, and moved once to each node."""

from benchmarks import scale


def test_the_driver_reads_and_a_node_fetches_every_file_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = scale.measure(images=300, shards=12, count=3)
    table, images = found["table_bytes"], sum(path.stat().st_size for path in tmp_path.rglob("*.png"))
    assert table == 300 * scale.PIXELS
    read = {name: entry["read_bytes"] for name, entry in found.items() if "read_bytes" in str(entry)}
    assert read == {"images, cold": images, "images, warm": 0, "one file, cold": table, "one file, warm": 0}
    assert found["table, fetched by all nodes"]["moved_bytes"] == 3 * table
    assert found["further shards of all nodes"]["moved_bytes"] == 0
    copies = list(tmp_path.glob("node-*/project/table.arrow"))
    assert [path.read_bytes() for path in copies] == [(tmp_path / "table.arrow").read_bytes()] * 3
