//! From objects as people and controllers write them to what netlb keeps of them.
