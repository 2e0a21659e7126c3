"""The Berkeley Function Calling Leaderboard with the official verdicts: single turn and multi-turn.

Decoding (`decode`), the checker (`cases`, `check`), categories and totals (`categories`, `aggregate`), reading the
published files (`files`), and the numbers of a run (`summary`) are written from the rules, free of the official
package; tests hold them against published verdicts. That package, an extra, is needed for its system prompt
(`official`) and for the multi-turn categories (`multi_turn`), whose functions really run. Agentic categories are not
scored here.
"""
