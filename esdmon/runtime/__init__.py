"""Everything that happens at a step: count it, choose matrices, read them, report, deliver."""
