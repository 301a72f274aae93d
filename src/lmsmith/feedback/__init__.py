"""What people said to a model and think of its answers: kept in one database, given to training."""
