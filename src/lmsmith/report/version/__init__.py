"""The page of a version: is the candidate better than the version it was made from?"""
