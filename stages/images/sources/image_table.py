"""arrow:PATH: an image table of this project."""

from stages.files.images import read_images
from stages.images.sources.base import ArraySource, Source, regular_file


def open_image_table(path: str) -> Source:
    """The table as an array source, with its labels and the classes that its metadata names."""
    table = read_images(regular_file(path))
    source = ArraySource(path, table.images, table.labels, table.metadata.get("classes"))
    source.whole_files = True
    return source
