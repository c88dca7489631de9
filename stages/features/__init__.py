"""Features: encoders and their weights, exact nearest neighbours, FAISS indices, distances between sets."""
