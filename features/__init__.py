"""From a shop's tables, through the consent gate, to the inputs of each model.

Here live the data contract, validation, the gate, and the matrices that each tier trains on. Nothing here
decides a permission: the gate asks `consentier.consent`.
"""
