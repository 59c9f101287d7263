"""Files that are damaged, foreign, deleted or moved: detection, rescue and replacement."""
