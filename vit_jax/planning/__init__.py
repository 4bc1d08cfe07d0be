"""What a run would need and take on a slice nobody has rented yet."""
