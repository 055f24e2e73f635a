"""From a model's own output to the harmonized store on the model's native grid."""
