"""The files on disk: image tables, features, neighbour lists, tensors, and the paths of all of them."""
