"""The whole loop without people: labelers that disagree as people do, rounds, gates and votes."""
