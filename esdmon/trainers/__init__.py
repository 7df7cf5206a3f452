"""What the callbacks for Trainers share, whichever Trainer it is."""
