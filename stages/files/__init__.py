"""What lies on disk: image tables, features, neighbour lists, tensors, and where each of them is."""
