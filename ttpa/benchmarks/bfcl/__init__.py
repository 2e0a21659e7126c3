"""The Berkeley Function Calling Leaderboard with the official verdicts: single turn and multi-turn."""
