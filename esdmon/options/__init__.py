"""The options of `watch()`: validated once, for a loop of your own and for the callbacks of Trainers."""
