"""What makes the formulas fast and nothing else; every part has a short reference that states what it computes."""
