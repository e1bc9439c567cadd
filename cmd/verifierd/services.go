package main

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"

	"portcullis/internal/config"
	"portcullis/verifier/declared"
	"portcullis/verifier/record"
	"portcullis/verifier/services"
)

// contained are the services that the configuration names, as they are started here.
// What came with the system are NAME.tar and NAME.approval in a directory.
func contained(c *config.Config, s settings, log *record.Record) ([]services.Service, error) {
	paths := declared.Standard
	paths.Config, paths.RunDir, paths.StateDir = s.config, c.RunDir, c.StateDir
	list, err := services.List(c.Verifier.Services, paths, s.units)
	if err != nil {
		return nil, err
	}
	for i := range list {
		at := &list[i]
		base := filepath.Join(s.services, declared.Name(at.Purpose))
		at.Archive, at.Offer = base+".tar", func() error { return offer(base+".approval", log) }
		if at.RestExit != 0 {
			at.Bell = services.BootBell{Interface: c.Link.Interface, Socket: at.Socket, Allowed: c.PXE.AllowedUIDs}.Wait
		}
	}
	return list, nil
}

// offer puts the approval that came with a service into the log. One that stands there
// already changes nothing.
func offer(file string, log *record.Record) error {
	envelope, err := declared.Envelope(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		_, err = log.Add(envelope)
	}
	return err
}

// reserved are the purposes and the names of containers that no caller can have: those of
// services that systemd runs here, too, so that none runs twice.
func reserved() (purposes, names []string) {
	for _, s := range declared.Names {
		purposes, names = append(purposes, declared.Purpose(s)), append(names, declared.Container(s))
	}
	return purposes, names
}

func tellServices(k *services.Keeper) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(k.Status()) // the caller may be gone: nobody to tell
	})
}
