"""Float64 reference of the row statistics and of the token selection.

Written from the mathematical definitions with NumPy alone; it shares no code, no constants and no
order of summation with the library, so that agreement of the two means something.
"""
