package io.torrelque.example;

import io.torrelque.v1.DequeueRequest;
import io.torrelque.v1.Task;
import java.io.IOException;
import java.time.Duration;

/** One long poll. What it brings stays leased to us until it is released or its lease runs out. */
final class Poll {
    private Poll() {}

    static int run(Options options) throws UsageException, IOException {
        var timeout = options.seconds("timeout").orElse(Duration.ofSeconds(10));
        // Later than the server's own timeout, so that "nothing came" is an empty answer and no error.
        var deadline = options.seconds("deadline").orElse(timeout.plusSeconds(5));
        var most = options.number("max", 1, Integer.MAX_VALUE).orElse(1);
        try (var client = Client.open(options)) {
            var request = DequeueRequest.newBuilder()
                    .setQueue(client.queue())
                    .setMaxTasks(most)
                    .setTimeout(Wire.duration(timeout))
                    .setWorkerId(Client.WORKER_ID)
                    .build();
            var tasks = client.blocking(deadline).dequeue(request).getTasksList();
            Events.print(new Events.Polled(tasks.stream().map(Poll::describe).toList()));
        }
        return 0;
    }

    private static Events.PolledTask describe(Task task) {
        var data = task.getPayload().getData();
        return new Events.PolledTask(task.getTaskId(), task.getDequeueCount(), data.size(), Digest.sha256(data));
    }
}
