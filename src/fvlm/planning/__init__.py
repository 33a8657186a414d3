"""What a study will take, before it does it: amounts, limits, speed, hours and cost."""
