package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"golang.org/x/mod/sumdb/note"

	"portcullis/internal/config"
	"portcullis/internal/event"
	"portcullis/verifier/record"
	"portcullis/verifier/witness"
)

// witnesses are those of the configuration.
func witnesses(c config.Verifier) (record.Witnesses, error) {
	var clients []*witness.Client
	for _, w := range c.Witnesses {
		key, err := witness.ParseKey(w.Key)
		if err != nil {
			return record.Witnesses{}, err
		}
		clients = append(clients, &witness.Client{URL: w.URL, Key: key, HTTP: &http.Client{Timeout: 30 * time.Second, CheckRedirect: stay}})
	}
	return record.NewWitnesses(c.Quorum, clients)
}

// stay follows nobody: a witness is where the configuration says, and does not have this Pi ask others.
func stay(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// public is what other nodes reach over the network: GET of the log's files below
// /log/, and the witness below /witness/ where this Pi is one. All of it is signed,
// or checked by its signature; nothing here can ask for a permission.
func public(c config.Verifier, dir string, log *record.Record) (http.Handler, *witness.Key, error) {
	mux := http.NewServeMux()
	mux.Handle("GET /log/", http.StripPrefix("/log", log.Files()))
	if c.WitnessName == "" {
		return mux, nil, nil
	}
	key, err := logKey(filepath.Join(dir, "witness.key"))
	if err != nil {
		return nil, nil, err
	}
	var logs []note.Verifier
	for _, text := range c.WitnessLogs {
		b, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return nil, nil, fmt.Errorf("witness_logs: %w", err)
		}
		v, err := record.Verifier(b)
		if err != nil {
			return nil, nil, fmt.Errorf("witness_logs: %w", err)
		}
		logs = append(logs, v)
	}
	s, err := witness.NewServer(filepath.Join(dir, "witness"), c.WitnessName, key, logs, time.Now)
	if err != nil {
		return nil, nil, err
	}
	mux.Handle("/witness/", http.StripPrefix("/witness", s))
	return mux, s.Key(), nil
}

// listenPublic opens the address of the configuration, and says the witness's key.
func listenPublic(c *config.Config, p parts) (net.Listener, http.Handler, error) {
	h, key, err := public(c.Verifier, filepath.Join(c.StateDir, "verifierd"), p.log)
	if err != nil {
		return nil, nil, err
	}
	if key != nil {
		p.events.Emit("witness.ready", event.Fields{"key": key.String(), "logs": len(c.Verifier.WitnessLogs)})
	}
	l, err := net.Listen("tcp", c.Verifier.Listen)
	return l, h, err
}

// servePublic serves h at the address until ctx ends. Its callers are strangers:
// every wait and every size has an end.
func servePublic(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 20 * time.Second, WriteTimeout: time.Minute, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	err := srv.Serve(newCrowd(l))
	if ctx.Err() != nil {
		return nil
	}
	return err
}
