package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"portcullis/internal/rpc"
	"portcullis/verifier/declared"
)

// maxServices bounds the answer about the services, in bytes.
const maxServices = 64 << 10

// newServices asks verifierd for the services that it runs as containers.
func newServices(ctx context.Context, socket string) ([]declared.Status, error) {
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, rpc.BaseURL+declared.StatusPath, nil)
	if err != nil {
		return nil, err
	}
	a, err := rpc.Client(socket).Do(q)
	if err != nil {
		return nil, err
	}
	defer a.Body.Close()
	list := []declared.Status{}
	if a.StatusCode == http.StatusNotFound {
		return list, nil // a verifierd that runs none
	}
	if a.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("services: %s", a.Status)
	}
	return list, json.NewDecoder(io.LimitReader(a.Body, maxServices)).Decode(&list)
}

// printServices tells of each service that is to run as a container.
func printServices(w io.Writer, list []declared.Status, paint func(string, string) string) {
	for _, s := range list {
		state := s.State
		switch s.State {
		case declared.StateRunning, declared.StateResting:
			state = paint(green, state)
		case declared.StateRefused, declared.StateFailed, declared.StateElsewhere:
			state = paint(red, state)
		}
		fmt.Fprintf(w, "service  %s as a container: %s since %s", s.Service, state, s.Since.Format("15:04:05"))
		if s.Container != "" {
			fmt.Fprintf(w, ", %.12s", s.Container)
		}
		if s.Reason != "" {
			fmt.Fprintf(w, ", %s: %s", s.Reason, s.Detail)
		}
		fmt.Fprintln(w)
	}
}
