package io.torrelque.example;

import java.time.Duration;
import java.util.concurrent.ThreadLocalRandom;

/** How long to wait before the next attempt: twice as long after each failure, with jitter. */
final class Backoff {
    private static final Duration FIRST = Duration.ofMillis(100);
    private static final Duration LONGEST = Duration.ofSeconds(5);

    private Duration most = FIRST;

    Duration next() {
        var millis = most.toMillis();
        most = most.compareTo(LONGEST.dividedBy(2)) > 0 ? LONGEST : most.multipliedBy(2);
        return Duration.ofMillis(ThreadLocalRandom.current().nextLong(millis / 2, millis + 1));
    }

    void reset() {
        most = FIRST;
    }
}
