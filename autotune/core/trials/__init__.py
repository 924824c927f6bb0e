"""What trials say: comparison, standings, verdict, the budget, and what is believed of the rest."""
