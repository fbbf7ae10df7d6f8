package io.torrelque.example;

import io.torrelque.v1.DisconnectPolicy;
import java.io.IOException;
import java.time.Duration;
import java.util.concurrent.CompletableFuture;

/** Takes tasks as they come, until it is told to stop: by an option, by SIGTERM or by SIGINT. */
final class Consume {
    private static final Duration FOREVER = Duration.ofDays(3650);

    private Consume() {}

    static int run(Options options) throws UsageException, IOException {
        var settings = new Consumer.Settings(
                options.number("credit", 1, 10_000).orElse(4),
                policy(options.text("policy").orElse("keep")),
                options.seconds("hold").orElse(Duration.ZERO),
                options.number("until", 1, Integer.MAX_VALUE).orElse(Integer.MAX_VALUE),
                options.seconds("idle").orElse(FOREVER));
        var ended = new CompletableFuture<Integer>();
        try (var client = Client.open(options)) {
            var consumer = new Consumer(client, settings);
            stopInOrderBySignal(consumer, ended);
            ended.complete(consumer.run());
        } finally {
            ended.complete(1);
        }
        return ended.join();
    }

    /**
     * The JVM answers SIGTERM and SIGINT by running the shutdown hooks, while the other threads go on. Left alone it
     * then exits with 128 plus the signal: to halt inside of the hook, when all is done, gives the exit code we mean.
     */
    private static void stopInOrderBySignal(Consumer consumer, CompletableFuture<Integer> ended) {
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            consumer.stop();
            Runtime.getRuntime().halt(ended.join());
        }));
    }

    private static DisconnectPolicy policy(String name) throws UsageException {
        return switch (name) {
            case "keep" -> DisconnectPolicy.DISCONNECT_POLICY_KEEP_LEASE;
            case "requeue" -> DisconnectPolicy.DISCONNECT_POLICY_REQUEUE;
            default -> throw new UsageException("--policy: keep or requeue, not " + name);
        };
    }
}
