package io.torrelque.example;

import io.grpc.CallCredentials;
import io.grpc.ChannelCredentials;
import io.grpc.CompositeChannelCredentials;
import io.grpc.ConnectivityState;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.TlsChannelCredentials;
import io.torrelque.v1.TorrelqueServiceGrpc;
import io.torrelque.v1.TorrelqueServiceGrpc.TorrelqueServiceBlockingStub;
import io.torrelque.v1.TorrelqueServiceGrpc.TorrelqueServiceStub;
import java.io.File;
import java.io.FileInputStream;
import java.io.IOException;
import java.net.URI;
import java.net.URISyntaxException;
import java.security.cert.CertificateException;
import java.security.cert.CertificateFactory;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Executor;
import java.util.concurrent.TimeUnit;
import java.util.function.Supplier;
import java.util.regex.Pattern;
import java.util.stream.Stream;

/** The channel to the server and what every call needs: one of it serves a whole program. */
final class Client implements AutoCloseable {
    /** Of a unary call, with its retries. A call without a deadline may wait for ever. */
    static final Duration UNARY_DEADLINE = Duration.ofSeconds(30);

    /** How often a long stream shall say that it is alive. */
    static final Duration PROGRESS_INTERVAL = Duration.ofSeconds(10);

    /** For the server's logs and metrics. */
    static final String WORKER_ID = "java-" + ProcessHandle.current().pid();

    /** Where a token may be sent in the clear. */
    private static final Pattern LOOPBACK = Pattern.compile("localhost|127(\\.\\d+){3}|\\[::1]");

    private final Supplier<ManagedChannel> channels;
    private final ManagedChannel channel;
    private final String queue;

    private Client(Supplier<ManagedChannel> channels, String queue) {
        this.channels = channels;
        this.channel = channels.get();
        this.queue = queue;
    }

    static Client open(Options options) throws UsageException, IOException {
        var address = address(options.text("address", "TORRELQUE_ADDRESS").orElse("127.0.0.1:50051"));
        var credentials = credentials(options, address.getHost());
        var queue = options.text("queue", "TORRELQUE_QUEUE").orElse("");
        return new Client(() -> channel(address, credentials), queue);
    }

    private static ManagedChannel channel(URI address, ChannelCredentials credentials) {
        return Grpc.newChannelBuilderForAddress(address.getHost(), address.getPort(), credentials)
                // Finds out that the peer is gone when nothing else would: a waiting stream is silent.
                .keepAliveTime(30, TimeUnit.SECONDS)
                .keepAliveTimeout(10, TimeUnit.SECONDS)
                .keepAliveWithoutCalls(true)
                .enableRetry()
                // A request that is larger than this buffer is not retried; the default is 1 MiB.
                .perRpcBufferLimit(4 << 20)
                .defaultServiceConfig(serviceConfig())
                .build();
    }

    /** A client with a connection of its own. */
    Client another() {
        return new Client(channels, queue);
    }

    private static URI address(String text) throws UsageException {
        try {
            var address = new URI("//" + text);
            if (address.getHost() != null && address.getPort() > 0 && address.getPort() <= 65_535) {
                return address;
            }
        } catch (URISyntaxException malformed) {
            // Said below.
        }
        throw new UsageException("--address: not HOST:PORT: " + text);
    }

    private static ChannelCredentials credentials(Options options, String host) throws UsageException, IOException {
        var authorities = options.text("ca", "TORRELQUE_CA");
        var transport = authorities.isPresent()
                ? tls(new File(authorities.get()))
                : InsecureChannelCredentials.create();
        var token = System.getenv("TORRELQUE_TOKEN");
        if (token == null || token.isEmpty()) {
            return transport;
        }
        if (authorities.isEmpty() && !LOOPBACK.matcher(host).matches()) {
            throw new UsageException("TORRELQUE_TOKEN is not sent beyond this machine without --ca");
        }
        return CompositeChannelCredentials.create(transport, new BearerToken(token));
    }

    private static ChannelCredentials tls(File authorities) throws UsageException, IOException {
        try (var pem = new FileInputStream(authorities)) {
            CertificateFactory.getInstance("X.509").generateCertificate(pem);
        } catch (CertificateException unusable) {
            throw new UsageException("--ca: no certificate is in " + authorities);
        }
        return TlsChannelCredentials.newBuilder().trustManager(authorities).build();
    }

    /**
     * Which calls gRPC may repeat by itself: those that do no harm when the first one arrived. Enqueue and BatchEnqueue
     * are among them because we always set a request_id. Dequeue never is: a lost answer may hold leased tasks.
     *
     * <p>UNKNOWN is what grpc-java says of some connections that are lost ("channel closed"); what the server calls so may
     * have been done, which is no harm to these calls either.
     */
    private static Map<String, ?> serviceConfig() {
        var repeatable = Stream.of(
                        "Enqueue", "BatchEnqueue", "ExtendLease", "Requeue", "Release", "GetTaskState", "GetQueueStats")
                .map(method -> Map.of("service", TorrelqueServiceGrpc.SERVICE_NAME, "method", method))
                .toList();
        var policy = Map.of(
                "maxAttempts", 4.0,
                "initialBackoff", "0.1s",
                "maxBackoff", "2s",
                "backoffMultiplier", 2.0,
                "retryableStatusCodes", List.of("UNAVAILABLE", "UNKNOWN"));
        return Map.of(
                "methodConfig", List.of(Map.of("name", repeatable, "retryPolicy", policy)),
                "retryThrottling", Map.of("maxTokens", 10.0, "tokenRatio", 0.1));
    }

    /** Empty: the server's default one. */
    String queue() {
        return queue;
    }

    TorrelqueServiceBlockingStub blocking() {
        return TorrelqueServiceGrpc.newBlockingStub(channel);
    }

    TorrelqueServiceBlockingStub blocking(Duration deadline) {
        return blocking().withDeadlineAfter(deadline.toNanos(), TimeUnit.NANOSECONDS);
    }

    /** What comes back is handed to the executor, a call's messages one after the other. */
    TorrelqueServiceStub async(Executor executor) {
        return TorrelqueServiceGrpc.newStub(channel).withExecutor(executor);
    }

    TorrelqueServiceStub async(Executor executor, Duration deadline) {
        return async(executor).withDeadlineAfter(deadline.toNanos(), TimeUnit.NANOSECONDS);
    }

    /**
     * Lets the next call connect anew, and fail or not by that. Left alone after a failure, gRPC waits up to two
     * minutes between two attempts, and fails all calls meanwhile.
     */
    void connectAnew() {
        if (channel.getState(false) == ConnectivityState.TRANSIENT_FAILURE) {
            channel.enterIdle();
        }
    }

    /** Closes without waiting: calls that are not answered yet fail. */
    void drop() {
        channel.shutdownNow();
    }

    @Override
    public void close() {
        channel.shutdown();
        try {
            if (!channel.awaitTermination(1, TimeUnit.SECONDS)) {
                channel.shutdownNow().awaitTermination(1, TimeUnit.SECONDS);
            }
        } catch (InterruptedException interrupted) {
            channel.shutdownNow();
            Thread.currentThread().interrupt();
        }
    }

    /** Asked anew for each call: the place to refresh a token that expires. */
    private static final class BearerToken extends CallCredentials {
        private static final Metadata.Key<String> AUTHORIZATION =
                Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);

        private final String token;

        BearerToken(String token) {
            this.token = token;
        }

        @Override
        public void applyRequestMetadata(RequestInfo call, Executor executor, MetadataApplier applier) {
            var headers = new Metadata();
            headers.put(AUTHORIZATION, "Bearer " + token);
            applier.apply(headers);
        }
    }
}
