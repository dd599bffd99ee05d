"""Pure mathematics of compression on arrays: no graph, no file, no device."""
