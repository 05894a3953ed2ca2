"""What a measurement leaves for people: progress, tables, pictures, the report, and where it was measured."""
