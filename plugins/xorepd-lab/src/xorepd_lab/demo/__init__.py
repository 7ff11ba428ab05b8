"""The tour of xorepd between two pools of a lab, judged by software that is neither."""
