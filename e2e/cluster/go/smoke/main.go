// Command smoke is the only program in the image of the cluster's smoke test: a web server, a client and a file writer.
//
//	smoke serve             answers every request on :8080 with "smoke ok" and logs its path
//	smoke get URL [TEXT]    succeeds when URL answers 200 with TEXT in its body; tries for 30 s
//	smoke write FILE BYTES  writes that many zero bytes and syncs them
//	smoke sleep             waits to be stopped
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const patience = 30 * time.Second

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "smoke:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 1 && args[0] == "serve":
		return serve()
	case len(args) >= 2 && args[0] == "get":
		return get(args[1], strings.Join(args[2:], " "))
	case len(args) == 3 && args[0] == "write":
		return write(args[1], args[2])
	case len(args) == 1 && args[0] == "sleep":
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM)
		<-stop
		return nil
	}
	return fmt.Errorf("unknown arguments %q", args)
}

func serve() error {
	return http.ListenAndServe(":8080", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Println("served", r.URL.Path)
		fmt.Fprintln(w, "smoke ok")
	}))
}

func get(url, want string) error {
	client := http.Client{Timeout: 2 * time.Second}
	var last error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if last = getOnce(&client, url, want); last == nil {
			return nil
		}
	}
	return last
}

func getOnce(client *http.Client, url, want string) error {
	answer, err := client.Get(url)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	if err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK || !strings.Contains(string(body), want) {
		return fmt.Errorf("%s answered %d %q", url, answer.StatusCode, body)
	}
	fmt.Print(string(body))
	return nil
}

func write(path, size string) error {
	bytes, err := strconv.ParseInt(size, 10, 64)
	if err != nil {
		return err
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	zeros := make([]byte, 1<<16)
	for left := bytes; left > 0; {
		n := min(left, int64(len(zeros)))
		if _, err := file.Write(zeros[:n]); err != nil {
			return err
		}
		left -= n
	}
	return file.Sync()
}
