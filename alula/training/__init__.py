"""Training inside the graph: data, losses, teachers and the one trainer."""
