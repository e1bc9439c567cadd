package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"

	"portcullis/attestserver/channel"
	"portcullis/attestserver/server"
	"portcullis/internal/clock"
	"portcullis/internal/event"
)

// maxOutside bounds the connections of strangers; one more is closed at once.
const maxOutside = 32

// serveOutside answers POST /attest at the address until ctx ends, as soon as the machine
// has it; "" is nowhere. Its callers are strangers: every wait and every size has an end.
func serveOutside(ctx context.Context, address string, fleet *server.Fleet, events *event.Writer) error {
	if address == "" {
		<-ctx.Done()
		return nil
	}
	l, err := channel.Listen(ctx, address, func(err error) {
		events.Emit("listen.waiting", event.Fields{"address": address, "detail": err.Error()})
	})
	switch {
	case ctx.Err() != nil:
		return nil
	case err != nil:
		return err
	}
	defer l.Close()
	events.Emit("ask.ready", event.Fields{"address": l.Addr().String()})
	srv := &http.Server{Handler: fleet.Outside(clock.Real{}), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: time.Minute, IdleTimeout: 10 * time.Second, MaxHeaderBytes: 8 << 10}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(&few{Listener: l, room: make(chan struct{}, maxOutside)}); ctx.Err() == nil && !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// few is a listener that has so many connections at once.
type few struct {
	net.Listener
	room chan struct{}
}

// Accept closes those for whom there is no room.
func (f *few) Accept() (net.Conn, error) {
	for {
		c, err := f.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case f.room <- struct{}{}:
			return &guest{Conn: c, leave: f.room}, nil
		default:
			c.Close()
		}
	}
}

// guest makes room when it is closed for the first time.
type guest struct {
	net.Conn
	leave chan struct{}
	once  sync.Once
}

// Close makes room for the next.
func (g *guest) Close() error {
	g.once.Do(func() { <-g.leave })
	return g.Conn.Close()
}
