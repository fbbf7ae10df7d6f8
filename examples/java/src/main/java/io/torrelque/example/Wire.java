package io.torrelque.example;

import com.google.protobuf.util.Durations;
import io.torrelque.v1.TaskStatus;
import java.time.Duration;

/** Between the messages and Java's own types. */
final class Wire {
    private Wire() {}

    static com.google.protobuf.Duration duration(Duration duration) {
        return Durations.fromNanos(duration.toNanos());
    }

    static Duration duration(com.google.protobuf.Duration duration) {
        return Duration.ofSeconds(duration.getSeconds(), duration.getNanos());
    }

    static boolean isFinal(TaskStatus status) {
        return switch (status) {
            case TASK_STATUS_COMPLETED, TASK_STATUS_REJECTED -> true;
            default -> false;
        };
    }
}
