"""What a measurement leaves for people: progress, scores, tables, plots, reports, and where it was made."""
