"""What happens at a step: count, choose, read, report, deliver."""
