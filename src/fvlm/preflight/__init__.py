"""What can go wrong in a long study, tried out in minutes before it starts."""
