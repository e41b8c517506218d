"""What the demo and the evaluation share: videos of a stream, recordings and their replay, live tracks, motion transfer."""
