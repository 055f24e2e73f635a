"""What users write in YAML, turned into checked, frozen values.

``yaml_source`` reads YAML with positions, ``schema`` is the experiment file, ``site`` a cluster,
``protocol`` the science protocol; ``load`` joins them, ``validate`` checks them against the disk.
"""
