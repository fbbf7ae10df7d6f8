package io.torrelque.example;

import com.google.protobuf.ByteString;
import io.torrelque.v1.BatchEnqueueRequest;
import io.torrelque.v1.EnqueueRequest;
import io.torrelque.v1.EnqueueResponse;
import io.torrelque.v1.Payload;
import io.torrelque.v1.TaskSpec;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.InvalidPathException;
import java.nio.file.LinkOption;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.UUID;

/** One task for each file below a folder. */
final class Produce {
    private Produce() {}

    static int run(Options options) throws UsageException, IOException {
        var limit = options.number("limit", 0, Integer.MAX_VALUE).orElse(Integer.MAX_VALUE);
        var batch = options.number("batch", 1, 1000).orElse(1);
        var files = files(options.argument(), limit);
        try (var client = Client.open(options)) {
            for (int from = 0; from < files.size(); from += batch) {
                var paths = files.subList(from, Math.min(from + batch, files.size()));
                var tasks = paths.stream().map(Produce::task).toList();
                var results = batch == 1 ? List.of(enqueue(client, tasks.get(0))) : enqueue(client, tasks);
                for (int i = 0; i < results.size(); i++) {
                    var result = results.get(i);
                    Events.print(new Events.Enqueued(result.getTaskId(), paths.get(i), result.getDeduplicated()));
                }
            }
        }
        Events.print(new Events.Produced(files.size()));
        return 0;
    }

    private static EnqueueResponse enqueue(Client client, TaskSpec task) {
        var request = EnqueueRequest.newBuilder().setQueue(client.queue()).setTask(task).build();
        return client.blocking(Client.UNARY_DEADLINE).enqueue(request);
    }

    private static List<EnqueueResponse> enqueue(Client client, List<TaskSpec> tasks) {
        var request = BatchEnqueueRequest.newBuilder().setQueue(client.queue()).addAllTasks(tasks).build();
        return client.blocking(Client.UNARY_DEADLINE).batchEnqueue(request).getResultsList();
    }

    /** The request id makes a repeat harmless: whoever retries, gRPC or we, enqueues the task once. */
    private static TaskSpec task(String path) {
        var payload = Events.JSON.toJson(Map.of("path", path));
        return TaskSpec.newBuilder()
                .setPayload(Payload.newBuilder().setData(ByteString.copyFromUtf8(payload)))
                .setRequestId(UUID.randomUUID().toString())
                .build();
    }

    private static List<String> files(String folder, int limit) throws UsageException, IOException {
        try {
            var root = Path.of(folder).toRealPath();
            if (!Files.isDirectory(root)) {
                throw new UsageException("not a folder: " + folder);
            }
            try (var found = Files.walk(root)) {
                return found.filter(path -> Files.isRegularFile(path, LinkOption.NOFOLLOW_LINKS))
                        .sorted()
                        .limit(limit)
                        .map(Path::toString)
                        .toList();
            }
        } catch (InvalidPathException | UncheckedIOException | IOException unreadable) {
            throw new UsageException("cannot read the folder: " + unreadable.getMessage());
        }
    }
}
