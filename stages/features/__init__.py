"""Feature encoders, feature tables, FAISS indices and the Frechet distance."""
