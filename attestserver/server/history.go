package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"

	"portcullis/attestserver/protocol"
	"portcullis/attestserver/verdict"
	"portcullis/internal/atomicfile"
)

// historyFile lies beside the tiles. It says nothing that the log does not say: without
// it the whole log is read once. What it saves is the reading.
const historyFile = "sessions.json"

// historyEvery is after how many entries the file is written anew, and so about how
// many are read at the start. A PC writes one a minute while all is well.
const historyEvery = 1024

// maxHistory bounds the file: some 150 bytes a PC.
const maxHistory = 4 << 20

// history is what the entries of a log, up to one of them, say that has to outlive
// attestd.
type history struct {
	Entries int64           `json:"entries"` // that it was made of
	PCs     map[string]past `json:"pcs"`     // by name; "" where attestd serves one

	stored int64 // entries that the file was made of
}

// past is that of one PC. Sessions before the newest one never come back.
type past struct {
	Quarantined string `json:"quarantined,omitempty"` // session
	Failed      string `json:"failed,omitempty"`      // session that has failed, not forgiven by a restart
	Fatal       bool   `json:"fatal,omitempty"`       // with a fatal finding
}

func (m *history) of(pc string) past { return m.PCs[pc] }

// note takes the next entry of the log.
func (m *history) note(e *entry) {
	p := m.PCs[e.PC]
	if e.State == verdict.Quarantined.String() {
		p.Quarantined = e.Session
	}
	if e.Session != p.Failed {
		p.Failed, p.Fatal = "", false
	}
	if e.Failures > 0 && e.Session != "" {
		p.Failed = e.Session
	}
	for _, f := range e.Findings {
		p.Fatal = p.Fatal || f.Class == protocol.Fatal.String()
	}
	m.PCs[e.PC] = p
	m.Entries++
}

// readHistory reads the file. One that is not there, does not parse, or knows of
// entries that the log lacks is as good as none.
func readHistory(path string, entries int64) history {
	none := history{PCs: make(map[string]past)}
	f, err := os.Open(path)
	if err != nil {
		return none
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxHistory+1))
	if err != nil || len(b) > maxHistory {
		return none
	}
	m, err := parseHistory(b)
	if err != nil || m.Entries > entries {
		return none
	}
	return m
}

func parseHistory(b []byte) (history, error) {
	var m history
	if err := json.Unmarshal(b, &m); err != nil {
		return m, err
	}
	if m.Entries < 0 || m.PCs == nil {
		return m, errors.New("no entries or no PCs")
	}
	for _, p := range m.PCs {
		for _, s := range []string{p.Quarantined, p.Failed} {
			if s != "" && !protocol.ValidSession(s) {
				return m, errors.New("bad session id")
			}
		}
	}
	m.stored = m.Entries
	return m, nil
}

// remember writes the file, of entries that are on the disk.
func (r *Record) remember() error {
	r.mu.Lock()
	m := r.past
	m.PCs = maps.Clone(m.PCs)
	r.mu.Unlock()
	if err := r.log.Sync(); err != nil {
		return fmt.Errorf("verdicts: %w", err)
	}
	b, err := json.Marshal(m)
	if err == nil {
		err = atomicfile.Replace(r.path, b, true)
	}
	if err != nil {
		return fmt.Errorf("verdicts: %w", err)
	}
	r.mu.Lock()
	r.past.stored = m.Entries
	r.mu.Unlock()
	return nil
}
