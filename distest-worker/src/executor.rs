//! Slots: starts attempts through zygotes, watches them, gathers their output.
