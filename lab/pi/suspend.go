package pi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// fileURI is how QEMU names a file for a machine's state.
func fileURI(path string) string { return "file:" + path }

// Suspend writes everything that the machine remembers, its TPM included, to the
// file state and takes its power away. With copies of the card and of the TPM's
// directory as they are afterwards, and the same Config, any number of machines go
// on from there (Config.Resume).
func (m *Machine) Suspend(ctx context.Context, state string) error {
	m.mu.Lock()
	q := m.cur.qmp
	m.mu.Unlock()
	// Without a limit: the default is what a network stands.
	if _, err := q.Execute(ctx, "migrate-set-parameters", map[string]any{"max-bandwidth": 1 << 40}); err != nil {
		return err
	}
	// Standing still first: the state is of one moment, and no page is written twice.
	if _, err := q.Execute(ctx, "stop", nil); err != nil {
		return err
	}
	if _, err := q.Execute(ctx, "migrate", map[string]any{"uri": fileURI(state)}); err != nil {
		return err
	}
	for {
		raw, err := q.Execute(ctx, "query-migrate", nil)
		if err != nil {
			return err
		}
		var is struct {
			Status string `json:"status"`
			Error  string `json:"error-desc"`
		}
		if err := json.Unmarshal(raw, &is); err != nil {
			return fmt.Errorf("pi: query-migrate: %w", err)
		}
		switch is.Status {
		case "completed":
			m.Kill()
			return nil
		case "failed", "cancelled":
			return fmt.Errorf("pi: the machine's state cannot be written: %s", is.Error)
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// resumed waits until the state is read, and lets the machine go on.
func (r *run) resumed(ctx context.Context) error {
	for {
		raw, err := r.qmp.Execute(ctx, "query-status", nil)
		if err != nil {
			return err
		}
		var is struct {
			Status  string `json:"status"`
			Running bool   `json:"running"`
		}
		if err := json.Unmarshal(raw, &is); err != nil {
			return fmt.Errorf("pi: query-status: %w", err)
		}
		switch {
		case is.Running:
			return nil
		case is.Status == "paused":
			_, err := r.qmp.Execute(ctx, "cont", nil)
			return err
		}
		select {
		case <-r.done:
			return errors.New("pi: the machine's state cannot be read")
		default:
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// pause is the time between two looks at QEMU.
func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(20 * time.Millisecond):
		return nil
	}
}
