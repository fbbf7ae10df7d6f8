package io.torrelque.example;

import com.google.protobuf.ByteString;
import io.torrelque.v1.Payload;
import io.torrelque.v1.ReleaseAction;
import io.torrelque.v1.TaskStatus;
import java.io.IOException;
import java.time.Duration;
import java.util.Map;

/** What is done with a task, and how it then ends. It may take long, and stops when its thread is interrupted. */
final class Work {
    private Work() {}

    static ReleaseAction on(Payload payload, Duration hold) throws InterruptedException {
        Thread.sleep(hold.toMillis());
        try {
            return release(TaskStatus.TASK_STATUS_COMPLETED, Digest.of(payload));
        } catch (IOException | RuntimeException failed) {
            return release(TaskStatus.TASK_STATUS_REJECTED, Map.of("error", failed.toString()));
        }
    }

    private static ReleaseAction release(TaskStatus status, Object result) {
        var data = ByteString.copyFromUtf8(Events.JSON.toJson(result));
        return ReleaseAction.newBuilder()
                .setStatus(status)
                .setResult(Payload.newBuilder().setData(data))
                .build();
    }
}
