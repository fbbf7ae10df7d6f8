package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
)

// serviceConfig says which calls the channel may repeat by itself, and how long each may take with its repeats.
//
// UNAVAILABLE leaves open whether the call was carried out, so these are the calls whose repeat is harmless: reads;
// enqueuing, as it always has a request id here; and settling, which a dequeue_count fences. Dequeue, Watch and Consume
// are not among them: what comes back would not be the same, so their loops are in this program.
const serviceConfig = `{
  "methodConfig": [{
    "name": [
      {"service": "torrelque.v1.TorrelqueService", "method": "Enqueue"},
      {"service": "torrelque.v1.TorrelqueService", "method": "BatchEnqueue"},
      {"service": "torrelque.v1.TorrelqueService", "method": "ExtendLease"},
      {"service": "torrelque.v1.TorrelqueService", "method": "Requeue"},
      {"service": "torrelque.v1.TorrelqueService", "method": "Release"},
      {"service": "torrelque.v1.TorrelqueService", "method": "GetTaskState"},
      {"service": "torrelque.v1.TorrelqueService", "method": "GetQueueStats"}
    ],
    "timeout": "30s",
    "retryPolicy": {
      "maxAttempts": 4,
      "initialBackoff": "0.1s",
      "maxBackoff": "2s",
      "backoffMultiplier": 2,
      "retryableStatusCodes": ["UNAVAILABLE"]
    }
  }],
  "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1}
}`

// dial makes the channel. It connects with the first call, and again whenever it has lost the server.
func dial(o options) (*grpc.ClientConn, error) {
	host, _, err := net.SplitHostPort(o.address)
	if err != nil {
		return nil, err
	}
	transport, err := transportCredentials(o.ca)
	if err != nil {
		return nil, err
	}
	settings := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithDefaultServiceConfig(serviceConfig),
		// A peer that has gone without a word is noticed within 40 s, also between calls.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time:                30 * time.Second,
			Timeout:             10 * time.Second,
			PermitWithoutStream: true,
		}),
		// By default the channel would wait for up to two minutes before it tries again.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: firstDelay, Multiplier: 2, Jitter: 0.2, MaxDelay: lastDelay},
			MinConnectTimeout: 5 * time.Second,
		}),
	}
	if o.token != "" {
		settings = append(settings, grpc.WithPerRPCCredentials(bearer{o.token, isLoopback(host)}))
	}
	return grpc.NewClient(o.address, settings...)
}

func transportCredentials(ca string) (credentials.TransportCredentials, error) {
	if ca == "" {
		return insecure.NewCredentials(), nil
	}
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("no certificates in %s", ca)
	}
	return credentials.NewTLS(&tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}), nil
}

// bearer puts a token into the metadata of each call.
type bearer struct {
	token    string
	loopback bool
}

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + b.token}, nil
}

// RequireTransportSecurity keeps the token from being sent in the clear over a network.
func (b bearer) RequireTransportSecurity() bool { return !b.loopback }

func isLoopback(host string) bool {
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}
