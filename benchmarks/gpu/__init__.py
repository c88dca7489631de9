"""What takes a GPU: a module per part, __main__ the command."""
