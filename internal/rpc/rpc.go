// Package rpc carries Connect calls over unix sockets between the services of
// one Pi. The listening side reads the caller's credentials from the kernel
// (SO_PEERCRED) and refuses everybody who is not named.
package rpc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Sockets of the services inside the run directory; each has a directory of its own
// because each service has a user of its own.
const (
	GatewaySocket = "gatewayd/gatewayd.sock"
	BootSocket    = "pxed/pxed.sock"
	AttestSocket  = "attestd/attestd.sock"
	RelaySocket   = "relay/relay.sock"
	HookSocket    = "hook/hook.sock"
	// verifierd's own, and the one where others speak Docker's API.
	VerifierSocket = "verifierd/verifierd.sock"
	GuardSocket    = "verifierd/docker.sock"
	// Where the engine's runtime asks verifierd before a program runs.
	GateSocket = "verifierd/gate.sock"
)

// ExitAtRest is the exit status of a service that is done for now; verifierd, where it
// started it, starts it again when it is wanted.
const ExitAtRest = 10

// Listen binds a unix socket at path, replacing one that a dead process left,
// and accepts only callers whose user id is root, our own, or in uids.
func Listen(path string, uids []int) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("rpc: socket directory: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("rpc: old socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("rpc: %w", err)
	}
	// The kernel checks the mode on connect; the credentials below decide.
	if err := os.Chmod(path, 0o666); err != nil {
		l.Close()
		return nil, fmt.Errorf("rpc: %w", err)
	}
	allowed := append([]int{0, os.Getuid()}, uids...)
	return &listener{UnixListener: l, allowed: allowed}, nil
}

type listener struct {
	*net.UnixListener
	allowed []int
}

// Accept skips callers that are not allowed.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		uid, err := peerUID(c)
		if err == nil && slices.Contains(l.allowed, uid) {
			return c, nil
		}
		c.Close()
	}
}

func peerUID(c *net.UnixConn) (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if credErr != nil {
		return 0, credErr
	}
	return int(cred.Uid), nil
}

// Serve serves h on l until ctx ends. Streams need HTTP/2 without TLS.
func Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	return ServeOut(ctx, l, h, 0)
}

// ServeOut is Serve that lets calls have their answers, for at most grace after ctx has ended.
// Nobody comes in any more then.
func ServeOut(ctx context.Context, l net.Listener, h http.Handler, grace time.Duration) error {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	srv := &http.Server{Handler: plain(h), Protocols: &protocols, ReadHeaderTimeout: 5 * time.Second}
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(closed)
		if grace > 0 {
			limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
			defer cancel()
			srv.Shutdown(limit) // what is left of calls is closed below
		}
		srv.Close()
	})
	err := srv.Serve(l)
	if !stop() {
		<-closed
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// plain has answers sent as they are. Connect offers gzip with each call, and takes it
// for answers of a few bytes: between two processes of one machine that saves
// nothing, and costs 50 KiB of memory a call at either end.
func plain(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Header.Del("Accept-Encoding")
		r.Header.Del("Connect-Accept-Encoding")
		h.ServeHTTP(w, r)
	})
}

// BaseURL is what Connect clients made with Client take as their base.
const BaseURL = "http://unix"

// Client returns an HTTP client whose every connection goes to the socket at path.
func Client(path string) *http.Client {
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	return &http.Client{Transport: &http.Transport{
		Protocols: &protocols,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}}
}
