package io.torrelque.example;

import io.grpc.StatusRuntimeException;
import java.io.IOException;
import java.util.List;
import java.util.logging.Level;
import java.util.logging.Logger;

/** The command line: one verb a run. Exit codes: 0 done, 1 the server said no, 2 the arguments cannot be used. */
public final class Main {
    /** Held, as the logging of the JDK forgets the level of a logger that nobody holds. It writes to standard error. */
    private static final Logger GRPC_LOG = Logger.getLogger("io.grpc");

    private Main() {}

    public static void main(String[] arguments) {
        GRPC_LOG.setLevel(Level.SEVERE);
        System.exit(run(arguments));
    }

    private static int run(String[] arguments) {
        if (List.of(arguments).contains("--help")) {
            System.err.println(Options.USAGE);
            return 0;
        }
        try {
            var options = Options.parse(arguments);
            return switch (options.verb()) {
                case PRODUCE -> Produce.run(options);
                case CONSUME -> Consume.run(options);
                case WATCH -> Watch.run(options);
                case POLL -> Poll.run(options);
                case RELEASE -> Release.run(options);
            };
        } catch (StatusRuntimeException refusal) {
            Failure.of(refusal).report();
            return 1;
        } catch (UsageException | IOException mistake) {
            System.err.println("torrelque-example: " + mistake.getMessage());
            System.err.println(Options.USAGE);
            return 2;
        }
    }
}
